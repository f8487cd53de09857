#!/bin/sh
# Install RabbitMQ where it is missing. Its system service is left switched off:
# the tests and the demo start a private one from the same package.
set -eu

die() {
    echo "$*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null 2>&1
}

for server in /usr/lib*/rabbitmq/bin/rabbitmq-server \
    /usr/lib*/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server; do
    [ -e "$server" ] && exit 0
done

if has apt-get; then
    installer=apt-get
elif has dnf; then
    installer=dnf
else
    die "RabbitMQ is not installed, and there is neither apt-get nor dnf: install rabbitmq-server"
fi

root=
if [ "$(id -u)" != 0 ]; then
    has sudo || die "RabbitMQ is not installed: as root, run '$installer install rabbitmq-server'"
    root=sudo
fi
echo "RabbitMQ is not installed: installing the package rabbitmq-server with $root $installer"

epmd_was_there=no
has epmd && epmd -names >/dev/null 2>&1 && epmd_was_there=yes

if [ $installer = dnf ]; then
    $root dnf install -y rabbitmq-server
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
        -o DPkg::Lock::Timeout=300 rabbitmq-server
fi

# Nor at the next boot; and the port mapper that the installation may have started goes too.
has systemctl && $root systemctl disable rabbitmq-server >/dev/null 2>&1 || :
[ $epmd_was_there = yes ] || $root epmd -kill >/dev/null 2>&1 || :
