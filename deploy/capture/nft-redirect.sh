#!/bin/sh
# Captured: the same by rewriting addresses, without policy routes; TCP and DNS alone.
# `gateway capture print --backend nft --mode redirect --fail closed --exclude-ports 22`, and with --undo; made by go test ./deploy -run CaptureForms -update
set -eu
case "${1:-}" in
on)
nft -f - <<'END'
add table inet culvert
delete table inet culvert
table inet culvert {
	comment "culvert capture: mark 0x1000/0x3000"
	set exclude4 {
		type ipv4_addr
		flags interval
		elements = { 127.0.0.0/8, 169.254.0.0/16 }
	}
	set exclude6 {
		type ipv6_addr
		flags interval
		elements = { ::1, fe80::/10 }
	}
	set exclude_ports {
		type inet_service
		flags interval
		elements = { 22, 15008 }
	}
	chain output {
		type nat hook output priority -100; policy accept;
		meta mark & 0x2000 == 0x2000 return comment "the gateway's own"
		tcp flags & (fin | syn | rst | ack) != syn return
		ct state != new return
		goto choose
	}
	chain choose {
		fib daddr type != unicast return
		ip daddr @exclude4 return
		ip6 daddr @exclude6 return
		meta l4proto { tcp, udp } th dport @exclude_ports return
		meta l4proto { tcp, udp } th dport 53 counter redirect to :15053
		meta l4proto { tcp, udp } th dport 53 return
		meta l4proto tcp counter redirect to :15001
	}
}
END
;;
off)
nft -f - <<'END'
add table inet culvert
delete table inet culvert
END
;;
*) echo "usage: $0 on|off" >&2; exit 2 ;;
esac
