"""The API under `/api/v1`: what applications and people do over HTTP.

`routes.py` lists every operation. Each is a function that takes a `Call` and returns a struct; what is served, what the OpenAPI
document says and what the tests call all come from that list.
"""
