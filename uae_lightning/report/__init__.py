"""What a run did, for people: summary.json and report.html."""
