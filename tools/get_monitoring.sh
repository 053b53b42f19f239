#!/bin/sh
# Installs what the tests of monitoring and `make monitor-demo` start, where it is missing: Debian's Prometheus,
# Alertmanager, node_exporter, and a Chromium that looks at pages. Starts nothing. Where there is no apt-get, nobody who
# may use it, or no mirror that answers, it says so and ends well: those tests are skipped, and say why.
set -eu

packages=
for pair in prometheus:prometheus prometheus-alertmanager:prometheus-alertmanager \
    prometheus-node-exporter:prometheus-node-exporter chromium:chromium; do
  command -v "${pair%%:*}" >/dev/null || packages="$packages ${pair#*:}"
done
[ -n "$packages" ] || exit 0

without() {
  echo "$1:$packages. Tests that need them are skipped. As root: apt-get install --no-install-recommends$packages" >&2
  exit 0
}

as_root=
[ "$(id -u)" = 0 ] || as_root="sudo -n"
if ! command -v apt-get >/dev/null || ! $as_root true 2>/dev/null; then
  without missing
fi

echo "installing$packages"
apt() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" >/dev/null; }
# shellcheck disable=SC2086
apt install --yes --no-install-recommends $packages 2>/dev/null || {
  { apt update && apt install --yes --no-install-recommends $packages; } || without "apt-get could not install"
}
# Their packages start them as services of the machine, which is not what was asked for.
if [ -d /run/systemd/system ]; then
  for service in prometheus prometheus-alertmanager prometheus-node-exporter; do
    case "$packages " in *" $service "*) $as_root systemctl disable --now --quiet $service || true ;; esac
  done
fi
