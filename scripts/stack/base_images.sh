#!/usr/bin/env bash
# Makes the images that the stack is built on, for machines that reach Debian but no image registry. Needs root,
# debootstrap and a Docker engine; an image that is there already is left alone. About a minute for each release of Debian.
#
# What they are, and are not:
#   debian:bookworm-slim    debootstrap's minimal bookworm, made slim by the same rules as the published image (no manuals,
#                           no locales, no package cache); not the same bytes
#   redis:…, nginx:…, prom/prometheus:…
#                           Debian's packages of these servers under the tags that compose names: another libc, Debian's
#                           version (Redis 7.0 from bookworm; nginx and Prometheus from the release in testing), none of
#                           the published images' entrypoint scripts, which compose does not use
# They are for trying and testing. Where a registry can be reached, `docker compose pull` gets the real ones.
set -euo pipefail

wanted=("$@")
[ ${#wanted[@]} -gt 0 ] || wanted=(debian redis nginx)
mirror=${DEBIAN_MIRROR:-$(awk '/^URIs:/ {print $2; exit} /^deb / {print $2; exit}' \
    /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null)}
testing=${DEBIAN_TESTING:-forky}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

die() {
    echo "base images: $*" >&2
    exit 1
}

tag_of() { # service → the image that compose names for it
    sed -nE "s/^ +image: \\$\\{PENSTOCK_$(tr '[:lower:]' '[:upper:]' <<<"$1")_IMAGE:-([^}]+)\\}.*/\\1/p" \
        "$(dirname "$0")/../../compose/docker-compose.yml" | head -n 1
}

present() { docker image inspect "$1" >/dev/null 2>&1; }

slim() { # folder: what the published slim images leave out, now and in what is installed later
    cat >"$1/etc/dpkg/dpkg.cfg.d/docker" <<'RULES'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
RULES
    cat >"$1/etc/apt/apt.conf.d/docker-clean" <<'RULES'
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Acquire::Languages "none";
RULES
    rm -rf "$1"/usr/share/{info,locale,man}/* "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/var/log/*
    find "$1/usr/share/doc" -type f ! -name copyright -delete
}

bootstrap() { # release, packages: its folder is $work/<release>
    local release=$1 script=/usr/share/debootstrap/scripts/$1
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid # a release that this debootstrap has not heard of
    echo "base images: debootstrap $release" >&2
    debootstrap --variant=minbase ${2:+--include="$2"} "$release" "$work/$release" "$mirror" "$script" >"$work/log" 2>&1 ||
        { tail -n 5 "$work/log" >&2 && die "debootstrap $release failed; is $mirror reachable?"; }
    slim "$work/$release"
}

import() { # folder, tag
    tar -C "$1" --numeric-owner -c . | docker import --change 'CMD ["sh"]' - "$2" >/dev/null
    echo "base images: $2"
}

main() {
    local name tag release packages=()
    [ "$(id -u)" = 0 ] || die "debootstrap needs root."
    command -v debootstrap >/dev/null || die "needs debootstrap: apt-get install debootstrap"
    docker info >/dev/null 2>&1 || die "no Docker engine answers."
    [ -n "$mirror" ] || die "which Debian mirror? Set DEBIAN_MIRROR."
    for name in "${wanted[@]}"; do
        case $name in
            debian) tag=debian:bookworm-slim release=bookworm packages=() ;;
            redis) tag=$(tag_of redis) release=bookworm packages=(redis-server) ;;
            nginx) tag=$(tag_of nginx) release=$testing packages=(nginx-light) ;;
            prometheus) tag=$(tag_of prometheus) release=$testing packages=(prometheus) ;;
            *) die "there is no $name here: debian, redis, nginx, prometheus" ;;
        esac
        present "$tag" && continue
        [ -d "$work/$release" ] || bootstrap "$release" ""
        make_one "$name" "$tag" "$release" "${packages[@]}"
    done
}

make_one() { # name, tag, release, packages…
    local name=$1 tag=$2 release=$3
    shift 3
    if [ $# -eq 0 ]; then
        import "$work/$release" "$tag"
        return
    fi
    # A mirror may be a snapshot of some day: its lists are then out of date, and still signed.
    present "penstock-base:$release" || import "$work/$release" "penstock-base:$release"
    docker build --quiet --tag "$tag" - >/dev/null <<RECIPE
FROM penstock-base:$release
RUN apt-get -o Acquire::Check-Valid-Until=false update && DEBIAN_FRONTEND=noninteractive apt-get install --no-install-recommends --yes $* \
    && rm -rf /var/lib/apt/lists/*
RUN install -d -o 999 -g 1000 /data && install -d -o 65534 -g 65534 /prometheus
WORKDIR /data
RECIPE
    echo "base images: $tag ($name from Debian $release)"
}

main
