#!/bin/sh
# Captured: the same by rewriting addresses, without policy routes; TCP and DNS alone.
# `gateway capture print --backend iptables --mode redirect --fail closed --exclude-ports 22`, and with --undo; made by go test ./deploy -run CaptureForms -update
set -eu
case "${1:-}" in
on)
iptables-restore -w 10 --noflush -T nat <<'END'
*nat
:CULVERT_OUTPUT - [0:0]
:CULVERT_PRE - [0:0]
:CULVERT_FORWARD - [0:0]
:CULVERT_INBOUND - [0:0]
:CULVERT_CHOOSE - [0:0]
:CULVERT_TAKE - [0:0]
:CULVERT_DIVERT - [0:0]
:CULVERT_AGAIN - [0:0]
:CULVERT_MARK - [0:0]
-A CULVERT_OUTPUT -m mark --mark 0x2000/0x2000 -j RETURN
-A CULVERT_OUTPUT -p tcp ! --syn -j RETURN
-A CULVERT_OUTPUT -m conntrack ! --ctstate NEW -j RETURN
-A CULVERT_OUTPUT -j CULVERT_CHOOSE
-A CULVERT_PRE -i lo -j RETURN
-A CULVERT_CHOOSE -m addrtype ! --dst-type UNICAST -j RETURN
-A CULVERT_CHOOSE -d 127.0.0.0/8 -j RETURN
-A CULVERT_CHOOSE -d 169.254.0.0/16 -j RETURN
-A CULVERT_CHOOSE -p tcp --dport 22 -j RETURN
-A CULVERT_CHOOSE -p tcp --dport 15008 -j RETURN
-A CULVERT_CHOOSE -p tcp --dport 53 -j REDIRECT --to-ports 15053
-A CULVERT_CHOOSE -p tcp --dport 53 -j RETURN
-A CULVERT_CHOOSE -p udp --dport 22 -j RETURN
-A CULVERT_CHOOSE -p udp --dport 15008 -j RETURN
-A CULVERT_CHOOSE -p udp --dport 53 -j REDIRECT --to-ports 15053
-A CULVERT_CHOOSE -p udp --dport 53 -j RETURN
-A CULVERT_CHOOSE -p tcp -j REDIRECT --to-ports 15001
COMMIT
END
iptables -w 10 -t nat -I OUTPUT -j CULVERT_OUTPUT
iptables -w 10 -t nat -I PREROUTING -j CULVERT_PRE
ip6tables-restore -w 10 --noflush -T nat <<'END'
*nat
:CULVERT_OUTPUT - [0:0]
:CULVERT_PRE - [0:0]
:CULVERT_FORWARD - [0:0]
:CULVERT_INBOUND - [0:0]
:CULVERT_CHOOSE - [0:0]
:CULVERT_TAKE - [0:0]
:CULVERT_DIVERT - [0:0]
:CULVERT_AGAIN - [0:0]
:CULVERT_MARK - [0:0]
-A CULVERT_OUTPUT -m mark --mark 0x2000/0x2000 -j RETURN
-A CULVERT_OUTPUT -p tcp ! --syn -j RETURN
-A CULVERT_OUTPUT -m conntrack ! --ctstate NEW -j RETURN
-A CULVERT_OUTPUT -j CULVERT_CHOOSE
-A CULVERT_PRE -i lo -j RETURN
-A CULVERT_CHOOSE -m addrtype ! --dst-type UNICAST -j RETURN
-A CULVERT_CHOOSE -d ::1/128 -j RETURN
-A CULVERT_CHOOSE -d fe80::/10 -j RETURN
-A CULVERT_CHOOSE -p tcp --dport 22 -j RETURN
-A CULVERT_CHOOSE -p tcp --dport 15008 -j RETURN
-A CULVERT_CHOOSE -p tcp --dport 53 -j REDIRECT --to-ports 15053
-A CULVERT_CHOOSE -p tcp --dport 53 -j RETURN
-A CULVERT_CHOOSE -p udp --dport 22 -j RETURN
-A CULVERT_CHOOSE -p udp --dport 15008 -j RETURN
-A CULVERT_CHOOSE -p udp --dport 53 -j REDIRECT --to-ports 15053
-A CULVERT_CHOOSE -p udp --dport 53 -j RETURN
-A CULVERT_CHOOSE -p tcp -j REDIRECT --to-ports 15001
COMMIT
END
ip6tables -w 10 -t nat -I OUTPUT -j CULVERT_OUTPUT
ip6tables -w 10 -t nat -I PREROUTING -j CULVERT_PRE
;;
off)
ip6tables -w 10 -t nat -D PREROUTING -j CULVERT_PRE
ip6tables -w 10 -t nat -D OUTPUT -j CULVERT_OUTPUT
ip6tables-restore -w 10 --noflush -T nat <<'END'
*nat
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
iptables -w 10 -t nat -D PREROUTING -j CULVERT_PRE
iptables -w 10 -t nat -D OUTPUT -j CULVERT_OUTPUT
iptables-restore -w 10 --noflush -T nat <<'END'
*nat
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
;;
*) echo "usage: $0 on|off" >&2; exit 2 ;;
esac
