#!/bin/sh
# Install those packages that are missing; they have the same names at Debian and at Fedora, but for
# one database and Prometheus.
# System services are left switched off: the tests and the demo start private ones.
set -eu

die() {
    echo "$*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null 2>&1
}

is_installed() {
    case $1 in
        rabbitmq-server)
            for server in /usr/lib*/rabbitmq/bin/rabbitmq-server \
                /usr/lib*/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server; do
                [ -e "$server" ] && return
            done
            return 1
            ;;
        chromium) has chromium || has chromium-browser ;;
        man-db) has man ;;
        prometheus) has promtool ;;
        python3-venv) /usr/bin/python3 -E -c 'import ensurepip' 2>/dev/null ;;
        systemd) has systemd-analyze ;;
        mariadb-server) has mariadbd ;;
        postgresql | postgresql-server)
            has postgres || [ -n "$(ls /usr/lib/postgresql/*/bin/postgres 2>/dev/null)" ]
            ;;
        *) has "$1" ;;
    esac
}

missing=
for package in "$@"; do
    is_installed "$package" || missing="$missing $package"
done
[ "$missing" ] || exit 0

if has apt-get; then
    installer=apt-get
elif has dnf; then
    installer=dnf
else
    die "missing:$missing, and there is neither apt-get nor dnf: install them"
fi

root=
if [ "$(id -u)" != 0 ]; then
    has sudo || die "missing:$missing: as root, run '$installer install$missing'"
    root=sudo
fi
echo "Installing$missing with ${root:+$root }$installer"

epmd_was_there=no
has epmd && epmd -names >/dev/null 2>&1 && epmd_was_there=yes

if [ $installer = dnf ]; then
    $root dnf install -y $(echo "$missing" |
        sed 's/postgresql/postgresql-server/; s/prometheus/golang-github-prometheus/')
else
    # Debian starts a service as it installs it, unless this file forbids it.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap '$root rm -f $policy' EXIT
        trap 'exit 130' INT TERM
        printf '#!/bin/sh\nexit 101\n' | $root tee $policy >/dev/null
        $root chmod 755 $policy
    fi
    $root apt-get update -q
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
        -o DPkg::Lock::Timeout=300 $missing
fi

case $missing in
    *rabbitmq-server*)
        # Nor at the next boot; and the port mapper that the installation may have started goes too.
        has systemctl && $root systemctl disable rabbitmq-server >/dev/null 2>&1 || :
        [ $epmd_was_there = yes ] || $root epmd -kill >/dev/null 2>&1 || :
        ;;
esac
for service in postgresql mariadb prometheus; do
    case $missing in
        *$service*) has systemctl && $root systemctl disable $service >/dev/null 2>&1 || : ;;
    esac
done
