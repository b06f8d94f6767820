"""Settings of the tests that make up their own examples."""

import hypothesis

# A machine that is busy with other tests takes its time for one example, which says nothing of the code.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")
