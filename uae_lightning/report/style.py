"""How report.html looks."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fbfaf7; color: #22262b;
  font: 16px/1.55 "Source Sans 3", "Segoe UI", system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 96px; }
h1 { font: 600 34px/1.2 Georgia, "Times New Roman", serif; margin: 0 0 6px; }
h2 { font: 600 23px/1.25 Georgia, "Times New Roman", serif; margin: 56px 0 4px; }
h3 { font-size: 16px; margin: 26px 0 8px; }
p { margin: 4px 0 14px; max-width: 72ch; } .muted, .note { color: #5f6770; }
code, pre { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: #f2f0ea; padding: 12px 14px; border-radius: 8px; white-space: pre-wrap; overflow-wrap: anywhere; }
img { display: block; max-width: 100%; image-rendering: pixelated; }
.hero { width: 100%; border-radius: 10px; margin: 22px 0 6px; box-shadow: 0 1px 3px #0002, 0 8px 28px #0000000f; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; margin: 22px 0; }
.card { background: #fff; border: 1px solid #e6e2d8; border-radius: 10px; padding: 14px 16px; }
.card b { display: block; font: 600 26px/1.2 Georgia, serif; margin: 2px 0; }
.card span { color: #5f6770; font-size: 14px; }
.good { color: #2f7d4f; } .bad { color: #b23b30; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; background: #fff; font-size: 13px; }
th, td { padding: 9px 12px; text-align: right; border-bottom: 1px solid #e9e5db; white-space: nowrap; }
th { font-weight: 600; color: #5f6770; background: #f5f3ed; } th:first-child, td:first-child { text-align: left; }
td small { color: #7a828a; } tr:last-child td { border-bottom: 0; }
.evaluation td { padding: 3px 12px; border-bottom: 0; } .evaluation svg { display: block; margin-left: auto; }
.evaluation .group td { padding-top: 16px; border-bottom: 1px solid #e9e5db; font-size: 14px; }
figure { margin: 0; } figcaption { font-size: 13px; line-height: 1.35; color: #454b52; margin-top: 5px; }
.chart { background: #fff; border: 1px solid #e6e2d8; border-radius: 10px; padding: 12px 14px 6px; margin: 14px 0; }
.chart svg { display: block; width: 100%; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 12px; }
.small .chart { margin: 0; } .chart h4 { margin: 0; font-size: 14px; font-weight: 600; }
.chart p { font-size: 13px; color: #5f6770; margin: 0 0 4px; }
.grid { stroke: #e3e0d8; } .axis { stroke: #b9b4a8; } .tick { font-size: 11.5px; fill: #6a7178; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.band { font-size: 12px; fill: #5f6770; text-anchor: middle; font-weight: 600; }
.gallery { display: grid; gap: 18px 14px; min-width: 760px; } .gallery img { width: 100%; border-radius: 6px; }
.gallery .head { font-weight: 600; font-size: 14px; color: #5f6770; } .empty { color: #8a9199; }
details { margin: 8px 0; } summary { cursor: pointer; }
"""
