#!/bin/sh
# Captured: plain TCP of other hosts to port 8080 of workloads here.
# `gateway capture print --backend nft --mode tproxy --fail closed --no-outbound --no-dns --inbound 8080`, and with --undo; made by go test ./deploy -run CaptureForms -update
set -eu
case "${1:-}" in
on)
ip -4 route add local 0.0.0.0/0 dev lo table 15001
ip -4 rule add priority 15001 fwmark 0x1000/0x3000 lookup 15001
ip -6 route add local ::/0 dev lo table 15001
ip -6 rule add priority 15001 fwmark 0x1000/0x3000 lookup 15001
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
		elements = { 15008 }
	}
	set inbound {
		type inet_service
		flags interval
		elements = { 8080 }
	}
	chain output {
		type route hook output priority mangle; policy accept;
		meta mark & 0x3000 == 0x3000 ct mark set ct mark | 0x2000 return comment "the gateway, in a client's name"
		meta mark & 0x2000 == 0x2000 return comment "the gateway's own"
		ct direction reply ct mark & 0x2000 == 0x2000 meta mark set meta mark | 0x1000 return
	}
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		iif lo meta mark & 0x3000 == 0x1000 goto divert
		iif lo return
		ct direction reply ct mark & 0x2000 == 0x2000 meta mark set meta mark | 0x1000 return
		tcp dport @inbound fib daddr type local goto inbound
	}
	chain inbound {
		ct direction original ct mark & 0x1000 == 0x1000 tcp flags & (fin | syn | rst | ack) != syn goto divert_inbound
		tcp flags & (fin | syn | rst | ack) != syn return
		ct state != new return
		meta l4proto tcp counter ct mark set ct mark | 0x1000 goto divert_inbound
	}
	chain divert_inbound {
		meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:15006 accept
		meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [::1]:15006 accept
		meta l4proto tcp reject with tcp reset
		meta l4proto udp reject
	}
	chain divert {
	}
}
END
;;
off)
nft -f - <<'END'
add table inet culvert
delete table inet culvert
END
ip -6 rule del priority 15001 fwmark 0x1000/0x3000 lookup 15001
ip -6 route del local ::/0 dev lo table 15001
ip -4 rule del priority 15001 fwmark 0x1000/0x3000 lookup 15001
ip -4 route del local 0.0.0.0/0 dev lo table 15001
;;
*) echo "usage: $0 on|off" >&2; exit 2 ;;
esac
