"""A web page that quotes the handbook passage which answers best: Gradio over the model of serve.py.

    python page.py MODEL.safetensors VOCABULARY.txt HANDBOOK.txt PORT

An ordinary Gradio program.  It knows nothing of Adyton.  Gradio's statistics are off: nobody could be told, since the
program's network ends at its own machine.
"""

import sys

import gradio
from serve import Model

model = Model(*sys.argv[1:4])
page = gradio.Interface(
    fn=model.answer,
    inputs=gradio.Textbox(label="Your question"),
    outputs=[gradio.Textbox(label="The handbook says"), gradio.Number(label="Likeness")],
    title="Pump handbook",
    api_name="answer",
    analytics_enabled=False,
)

if __name__ == "__main__":
    page.queue().launch(server_name="127.0.0.1", server_port=int(sys.argv[4]), quiet=True)
