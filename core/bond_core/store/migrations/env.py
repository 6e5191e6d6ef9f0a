"""Alembic's entry: runs the migrations on the connection that `bond_core.store.migrate` hands in.

That connection's transaction encloses everything; nothing here commits.
"""

from alembic import context

from bond_core.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
