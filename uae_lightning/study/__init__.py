"""`uae study`: several runs with several seeds, evaluated and compared, and the page that shows what came out.

plan      a study's YAML -> arms
cost      what a stage spends, by its own account
jobs      jobs as processes beside each other, each resumable
run       the command
claims    what is claimed, from the raw values of the evaluations
figures   curves, bars and pictures
captions  what a caption gained along a run
page      results.md
"""
