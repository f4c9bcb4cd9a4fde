/* queue_pg:discard_artifact */
select queue_pg.discard_artifact(%(upload_id)s::uuid)
