#!/bin/sh
# Captured: what programs of this host send, and DNS.
# `gateway capture print --backend nft --mode tproxy --fail closed --exclude-ports 22`, and with --undo; made by go test ./deploy -run CaptureForms -update
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
		elements = { 22, 15008 }
	}
	chain output {
		type route hook output priority mangle; policy accept;
		meta mark & 0x3000 == 0x3000 ct mark set ct mark | 0x2000 return comment "the gateway, in a client's name"
		meta mark & 0x2000 == 0x2000 return comment "the gateway's own"
		ct direction reply ct mark & 0x2000 == 0x2000 meta mark set meta mark | 0x1000 return
		ct direction original ct mark & 0x1000 == 0x1000 goto again
		tcp flags & (fin | syn | rst | ack) != syn return
		ct state != new return
		goto choose
	}
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		iif lo meta mark & 0x3000 == 0x1000 goto divert
		iif lo return
		ct direction reply ct mark & 0x2000 == 0x2000 meta mark set meta mark | 0x1000 return
	}
	chain again {
		meta mark set meta mark | 0x1000 return
	}
	chain divert {
		meta nfproto ipv4 meta l4proto { tcp, udp } th dport 53 tproxy ip to 127.0.0.1:15053 accept
		meta nfproto ipv6 meta l4proto { tcp, udp } th dport 53 tproxy ip6 to [::1]:15053 accept
		meta nfproto ipv4 meta l4proto { tcp, udp } tproxy ip to 127.0.0.1:15001 accept
		meta nfproto ipv6 meta l4proto { tcp, udp } tproxy ip6 to [::1]:15001 accept
		meta l4proto tcp reject with tcp reset
		meta l4proto udp reject
	}
	chain choose {
		fib daddr type != unicast return
		ip daddr @exclude4 return
		ip6 daddr @exclude6 return
		meta l4proto { tcp, udp } th dport @exclude_ports return
		meta l4proto { tcp, udp } th dport 53 counter ct mark set ct mark | 0x1000 meta mark set meta mark | 0x1000 return
		meta l4proto { tcp, udp } th dport 53 return
		meta l4proto tcp counter ct mark set ct mark | 0x1000 meta mark set meta mark | 0x1000 return
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
