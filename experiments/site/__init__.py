"""The pages of the site that are made from the code, and how the repository's files become pages (`make docs`).

`errors` has a page for each error class, `catalogue` one for all policies, `api` those of the Python API. `pages` says
which file is which page. `hook` gives all of it to mkdocs; no page is written into the repository but the table of
`prices`.
"""
