"""What a team would write for Prefect: two lines."""

from rrmsdk.retraining.on_prefect import flow

retrain = flow()
