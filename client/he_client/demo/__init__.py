"""The demo: a private search over 98,505 real diagnosis descriptions, beside the same search in plaintext.

catalogue.py       the ICD-10-CM titles, and terms whose right answer is known
encoders.py        text → unit vectors, on the client
questions.py       the questions that the demo asks
plaintext.py       the same search without encryption: FAISS
recall.py          what recall@k and hit@k mean
server_process.py  starts and stops the server, a process of its own
record.py          what was measured, and the keys of --json
report.py          what is printed
run.py             the flow from catalogue to table
command.py         options, for `hesearch demo` and `python -m he_client.demo`
"""
