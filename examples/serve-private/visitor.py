"""A visitor of the page: Gradio's own client, unmodified.

python visitor.py http://HOST:PORT QUESTION
"""

import sys

from gradio_client import Client

page = Client(sys.argv[1], verbose=False)
passage, _ = page.predict(sys.argv[2], api_name="/answer")
print(passage)
