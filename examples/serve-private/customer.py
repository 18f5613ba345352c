"""A customer's programs: the OpenAI client with another base URL, and a WebSocket; nothing of Adyton in them.

python customer.py http://HOST:PORT QUESTION
"""

import json
import sys

from openai import OpenAI
from websockets.sync.client import connect

address, question = sys.argv[1:3]
client = OpenAI(base_url=f"{address}/v1", api_key="none")
model = client.models.list().data[0].id
vector = client.embeddings.create(model=model, input=question).data[0].embedding
print(f"{len(vector)} numbers")

said = [{"role": "user", "content": question}]
print(client.chat.completions.create(model=model, messages=said).choices[0].message.content)
words = client.chat.completions.create(model=model, messages=said, stream=True)
print("".join(chunk.choices[0].delta.content or "" for chunk in words))

with connect(address.replace("http://", "ws://", 1) + "/live") as live:
    live.send(question)
    print(json.loads(live.recv())["passage"])
