"""An OpenAI-compatible server: embeddings, and a chat that quotes the handbook passage which answers best.

    python serve.py MODEL.safetensors VOCABULARY.txt HANDBOOK.txt PORT

`/v1/embeddings`, `/v1/chat/completions` (with `stream`, too), `/v1/models`, and a WebSocket at `/live` that answers
each message.  The transformer is the one of search.py.  It writes no text of its own: the chat quotes.  An ordinary
server on uvicorn: it opens files and a port.  It knows nothing of Adyton.
"""

import asyncio
import base64
import json
import sys
import time

import uvicorn
from search import Encoder, Tokenizer, embed, lines
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

NAME = "all-minilm-l6-v2"
MOST = 64  # texts in one request


class Model:
    def __init__(self, weights, vocabulary, handbook):
        self.encoder, self.tokenizer = Encoder(weights), Tokenizer(vocabulary)
        self.passages = lines(handbook)
        self.vectors = self.embed(self.passages)

    def embed(self, texts):
        return embed(self.encoder, self.tokenizer, texts)

    def answer(self, question):
        likeness = (self.embed([question]) @ self.vectors.T)[0]
        best = int(likeness.argmax())
        return self.passages[best], float(likeness[best])


def refused(message):
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error"}}, status_code=400)


def application(model):
    async def health(request):
        return PlainTextResponse("ok\n")

    async def models(request):
        return JSONResponse({"object": "list", "data": [{"id": NAME, "object": "model", "owned_by": "the vendor"}]})

    async def embeddings(request):
        asked = await request.json()
        texts = asked.get("input")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not 0 < len(texts) <= MOST or not all(isinstance(t, str) for t in texts):
            return refused(f"input: a text, or 1 to {MOST} texts")
        vectors = (await run_in_threadpool(model.embed, texts)).numpy()
        packed = asked.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(row.tobytes()).decode() if packed else row.tolist(),
            }
            for index, row in enumerate(vectors)
        ]
        used = sum(len(model.tokenizer(text)) for text in texts)
        usage = {"prompt_tokens": used, "total_tokens": used}
        return JSONResponse({"object": "list", "model": NAME, "data": data, "usage": usage})

    async def chat(request):
        asked = await request.json()
        said = [one.get("content") for one in asked.get("messages", []) if one.get("role") == "user"]
        if not said or not isinstance(said[-1], str):
            return refused("messages: at least one of the user, as text")
        text, _ = await run_in_threadpool(model.answer, said[-1])
        head = {"id": f"chatcmpl-{time.time_ns():x}", "created": int(time.time()), "model": NAME}
        if not asked.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            return JSONResponse({**head, "object": "chat.completion", "choices": [choice]})

        async def events():
            for number, word in enumerate(text.split(" ")):
                delta = {"content": word if number == 0 else " " + word}
                yield event({"index": 0, "delta": delta, "finish_reason": None})
                await asyncio.sleep(0)
            yield event({"index": 0, "delta": {}, "finish_reason": "stop"})
            yield "data: [DONE]\n\n"

        def event(choice):
            return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def live(socket):
        await socket.accept()
        try:
            while True:
                text, likeness = await run_in_threadpool(model.answer, await socket.receive_text())
                await socket.send_json({"passage": text, "likeness": round(likeness, 3)})
        except WebSocketDisconnect:
            pass

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            WebSocketRoute("/live", live),
        ]
    )


if __name__ == "__main__":
    uvicorn.run(application(Model(*sys.argv[1:4])), host="127.0.0.1", port=int(sys.argv[4]), log_level="warning")
