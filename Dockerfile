# The plugin's root file system. `make plugin` builds it and wraps it with config.json.
FROM debian:trixie-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
COPY requirements.lock /src/
RUN python3 -m venv /opt/pyoverlay \
 && /opt/pyoverlay/bin/pip install --no-cache-dir --no-compile --require-hashes -r /src/requirements.lock \
 && /opt/pyoverlay/bin/pip uninstall -y pip
COPY plugin /opt/pyoverlay/app/plugin
COPY driver /opt/pyoverlay/app/driver
COPY ipam /opt/pyoverlay/app/ipam
COPY lib /opt/pyoverlay/app/lib
RUN /opt/pyoverlay/bin/python -m compileall -q -o 2 /opt/pyoverlay

FROM debian:trixie-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-minimal libpython3-stdlib etcd-server \
 && rm -rf /var/lib/apt/lists/* /usr/share/doc /usr/share/man /var/cache/debconf \
 && find /usr/lib/python3* -name '*.pyc' -delete \
 && python3 -m compileall -q -o 2 /usr/lib/python3.* \
 && mkdir -p /host/run /run/docker/plugins /var/lib/docker/swarm /var/lib/pyoverlay
COPY --from=build /opt/pyoverlay /opt/pyoverlay
ENTRYPOINT ["/opt/pyoverlay/bin/python", "-OO", "-m", "plugin.cli", "serve"]
