#!/bin/sh
# Captured: what comes in on eth1 to be routed on, and nothing of this host's own.
# `gateway capture print --backend iptables --mode tproxy --fail closed --no-outbound --forward eth1`, and with --undo; made by go test ./deploy -run CaptureForms -update
set -eu
case "${1:-}" in
on)
ip -4 route add local 0.0.0.0/0 dev lo table 15001
ip -4 rule add priority 15001 fwmark 0x1000/0x3000 lookup 15001
ip -6 route add local ::/0 dev lo table 15001
ip -6 rule add priority 15001 fwmark 0x1000/0x3000 lookup 15001
iptables-restore -w 10 --noflush -T mangle <<'END'
*mangle
:CULVERT_OUTPUT - [0:0]
:CULVERT_PRE - [0:0]
:CULVERT_FORWARD - [0:0]
:CULVERT_INBOUND - [0:0]
:CULVERT_CHOOSE - [0:0]
:CULVERT_TAKE - [0:0]
:CULVERT_DIVERT - [0:0]
:CULVERT_AGAIN - [0:0]
:CULVERT_MARK - [0:0]
-A CULVERT_OUTPUT -m mark --mark 0x3000/0x3000 -j CONNMARK --set-xmark 0x2000/0x2000
-A CULVERT_OUTPUT -m mark --mark 0x2000/0x2000 -j RETURN
-A CULVERT_OUTPUT -m conntrack --ctdir REPLY -m connmark --mark 0x2000/0x2000 -j MARK --set-xmark 0x1000/0x1000
-A CULVERT_OUTPUT -m conntrack --ctdir REPLY -j RETURN
-A CULVERT_PRE -i lo -m mark --mark 0x1000/0x3000 -j CULVERT_DIVERT
-A CULVERT_PRE -i lo -j RETURN
-A CULVERT_PRE -m conntrack --ctdir REPLY -m connmark --mark 0x2000/0x2000 -j MARK --set-xmark 0x1000/0x1000
-A CULVERT_PRE -m conntrack --ctdir REPLY -j RETURN
-A CULVERT_PRE -i eth1 -j CULVERT_FORWARD
-A CULVERT_FORWARD -m connmark --mark 0x1000/0x1000 -j CULVERT_AGAIN
-A CULVERT_FORWARD -m mark --mark 0x1000/0x3000 -g CULVERT_DIVERT
-A CULVERT_FORWARD -p tcp ! --syn -j RETURN
-A CULVERT_FORWARD -m conntrack ! --ctstate NEW -j RETURN
-A CULVERT_FORWARD -j CULVERT_CHOOSE
-A CULVERT_FORWARD -m mark --mark 0x1000/0x3000 -j CULVERT_DIVERT
-A CULVERT_CHOOSE -m addrtype ! --dst-type UNICAST -j RETURN
-A CULVERT_CHOOSE -d 127.0.0.0/8 -j RETURN
-A CULVERT_CHOOSE -d 169.254.0.0/16 -j RETURN
-A CULVERT_CHOOSE -p tcp --dport 15008 -j RETURN
-A CULVERT_CHOOSE -p tcp --dport 53 -g CULVERT_TAKE
-A CULVERT_CHOOSE -p tcp --dport 53 -j RETURN
-A CULVERT_CHOOSE -p udp --dport 15008 -j RETURN
-A CULVERT_CHOOSE -p udp --dport 53 -g CULVERT_TAKE
-A CULVERT_CHOOSE -p udp --dport 53 -j RETURN
-A CULVERT_CHOOSE -p tcp -g CULVERT_TAKE
-A CULVERT_TAKE -j CONNMARK --set-xmark 0x1000/0x1000
-A CULVERT_TAKE -j MARK --set-xmark 0x1000/0x1000
-A CULVERT_DIVERT -p tcp --dport 53 -j TPROXY --on-ip 127.0.0.1 --on-port 15053 --tproxy-mark 0x1000/0x1000
-A CULVERT_DIVERT -p tcp -j TPROXY --on-ip 127.0.0.1 --on-port 15001 --tproxy-mark 0x1000/0x1000
-A CULVERT_DIVERT -p udp --dport 53 -j TPROXY --on-ip 127.0.0.1 --on-port 15053 --tproxy-mark 0x1000/0x1000
-A CULVERT_DIVERT -p udp -j TPROXY --on-ip 127.0.0.1 --on-port 15001 --tproxy-mark 0x1000/0x1000
-A CULVERT_AGAIN -g CULVERT_MARK
-A CULVERT_MARK -j MARK --set-xmark 0x1000/0x1000
COMMIT
END
iptables -w 10 -t mangle -I OUTPUT -j CULVERT_OUTPUT
iptables -w 10 -t mangle -I PREROUTING -j CULVERT_PRE
ip6tables-restore -w 10 --noflush -T mangle <<'END'
*mangle
:CULVERT_OUTPUT - [0:0]
:CULVERT_PRE - [0:0]
:CULVERT_FORWARD - [0:0]
:CULVERT_INBOUND - [0:0]
:CULVERT_CHOOSE - [0:0]
:CULVERT_TAKE - [0:0]
:CULVERT_DIVERT - [0:0]
:CULVERT_AGAIN - [0:0]
:CULVERT_MARK - [0:0]
-A CULVERT_OUTPUT -m mark --mark 0x3000/0x3000 -j CONNMARK --set-xmark 0x2000/0x2000
-A CULVERT_OUTPUT -m mark --mark 0x2000/0x2000 -j RETURN
-A CULVERT_OUTPUT -m conntrack --ctdir REPLY -m connmark --mark 0x2000/0x2000 -j MARK --set-xmark 0x1000/0x1000
-A CULVERT_OUTPUT -m conntrack --ctdir REPLY -j RETURN
-A CULVERT_PRE -i lo -m mark --mark 0x1000/0x3000 -j CULVERT_DIVERT
-A CULVERT_PRE -i lo -j RETURN
-A CULVERT_PRE -m conntrack --ctdir REPLY -m connmark --mark 0x2000/0x2000 -j MARK --set-xmark 0x1000/0x1000
-A CULVERT_PRE -m conntrack --ctdir REPLY -j RETURN
-A CULVERT_PRE -i eth1 -j CULVERT_FORWARD
-A CULVERT_FORWARD -m connmark --mark 0x1000/0x1000 -j CULVERT_AGAIN
-A CULVERT_FORWARD -m mark --mark 0x1000/0x3000 -g CULVERT_DIVERT
-A CULVERT_FORWARD -p tcp ! --syn -j RETURN
-A CULVERT_FORWARD -m conntrack ! --ctstate NEW -j RETURN
-A CULVERT_FORWARD -j CULVERT_CHOOSE
-A CULVERT_FORWARD -m mark --mark 0x1000/0x3000 -j CULVERT_DIVERT
-A CULVERT_CHOOSE -m addrtype ! --dst-type UNICAST -j RETURN
-A CULVERT_CHOOSE -d ::1/128 -j RETURN
-A CULVERT_CHOOSE -d fe80::/10 -j RETURN
-A CULVERT_CHOOSE -p tcp --dport 15008 -j RETURN
-A CULVERT_CHOOSE -p tcp --dport 53 -g CULVERT_TAKE
-A CULVERT_CHOOSE -p tcp --dport 53 -j RETURN
-A CULVERT_CHOOSE -p udp --dport 15008 -j RETURN
-A CULVERT_CHOOSE -p udp --dport 53 -g CULVERT_TAKE
-A CULVERT_CHOOSE -p udp --dport 53 -j RETURN
-A CULVERT_CHOOSE -p tcp -g CULVERT_TAKE
-A CULVERT_TAKE -j CONNMARK --set-xmark 0x1000/0x1000
-A CULVERT_TAKE -j MARK --set-xmark 0x1000/0x1000
-A CULVERT_DIVERT -p tcp --dport 53 -j TPROXY --on-ip ::1 --on-port 15053 --tproxy-mark 0x1000/0x1000
-A CULVERT_DIVERT -p tcp -j TPROXY --on-ip ::1 --on-port 15001 --tproxy-mark 0x1000/0x1000
-A CULVERT_DIVERT -p udp --dport 53 -j TPROXY --on-ip ::1 --on-port 15053 --tproxy-mark 0x1000/0x1000
-A CULVERT_DIVERT -p udp -j TPROXY --on-ip ::1 --on-port 15001 --tproxy-mark 0x1000/0x1000
-A CULVERT_AGAIN -g CULVERT_MARK
-A CULVERT_MARK -j MARK --set-xmark 0x1000/0x1000
COMMIT
END
ip6tables -w 10 -t mangle -I OUTPUT -j CULVERT_OUTPUT
ip6tables -w 10 -t mangle -I PREROUTING -j CULVERT_PRE
;;
off)
ip6tables -w 10 -t mangle -D PREROUTING -j CULVERT_PRE
ip6tables -w 10 -t mangle -D OUTPUT -j CULVERT_OUTPUT
ip6tables-restore -w 10 --noflush -T mangle <<'END'
*mangle
:CULVERT_OUTPUT - [0:0]
:CULVERT_PRE - [0:0]
:CULVERT_FORWARD - [0:0]
:CULVERT_INBOUND - [0:0]
:CULVERT_CHOOSE - [0:0]
:CULVERT_TAKE - [0:0]
:CULVERT_DIVERT - [0:0]
:CULVERT_AGAIN - [0:0]
:CULVERT_MARK - [0:0]
-X CULVERT_OUTPUT
-X CULVERT_PRE
-X CULVERT_FORWARD
-X CULVERT_INBOUND
-X CULVERT_CHOOSE
-X CULVERT_TAKE
-X CULVERT_DIVERT
-X CULVERT_AGAIN
-X CULVERT_MARK
COMMIT
END
iptables -w 10 -t mangle -D PREROUTING -j CULVERT_PRE
iptables -w 10 -t mangle -D OUTPUT -j CULVERT_OUTPUT
iptables-restore -w 10 --noflush -T mangle <<'END'
*mangle
:CULVERT_OUTPUT - [0:0]
:CULVERT_PRE - [0:0]
:CULVERT_FORWARD - [0:0]
:CULVERT_INBOUND - [0:0]
:CULVERT_CHOOSE - [0:0]
:CULVERT_TAKE - [0:0]
:CULVERT_DIVERT - [0:0]
:CULVERT_AGAIN - [0:0]
:CULVERT_MARK - [0:0]
-X CULVERT_OUTPUT
-X CULVERT_PRE
-X CULVERT_FORWARD
-X CULVERT_INBOUND
-X CULVERT_CHOOSE
-X CULVERT_TAKE
-X CULVERT_DIVERT
-X CULVERT_AGAIN
-X CULVERT_MARK
COMMIT
END
ip -6 rule del priority 15001 fwmark 0x1000/0x3000 lookup 15001
ip -6 route del local ::/0 dev lo table 15001
ip -4 rule del priority 15001 fwmark 0x1000/0x3000 lookup 15001
ip -4 route del local 0.0.0.0/0 dev lo table 15001
;;
*) echo "usage: $0 on|off" >&2; exit 2 ;;
esac
