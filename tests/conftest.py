"""What holds for every test."""

import structlog

# An embedded host sets up logging where nobody has, for the whole process, and later tests that
# capture logs would miss what its level leaves out.
structlog.configure()
