"""`uae app`: one page in the browser. What its tabs compute is here without Gradio; `page` alone knows Gradio."""
