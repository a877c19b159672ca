"""What a run says about itself while it works: forecast, live diagnoses, usage, trackers, plot."""
