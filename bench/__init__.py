"""What provisioning costs in calls and seconds, beside the same work done task by task with google.cloud."""
