package deploy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// captureForms are the files of capture/, each with the flags of `gateway capture print` that make it. Fail is closed: what is
// installed by hand is not known to the gateway, which then does not tell the rules that it runs.
var captureForms = []struct{ name, about, flags string }{
	{"tproxy", "what programs of this host send, and DNS", "--mode tproxy --fail closed --exclude-ports 22"},
	{"redirect", "the same by rewriting addresses, without policy routes; TCP and DNS alone", "--mode redirect --fail closed --exclude-ports 22"},
	{"inbound", "plain TCP of other hosts to port 8080 of workloads here", "--mode tproxy --fail closed --no-outbound --no-dns --inbound 8080"},
	{"router", "what comes in on eth1 to be routed on, and nothing of this host's own", "--mode tproxy --fail closed --no-outbound --forward eth1"},
}

// captureForm is the script that does and undoes what the flags say. IPv6 is on where it is made.
func captureForm(t *testing.T, backend, about, flags string) string {
	t.Helper()
	flags = "--backend " + backend + " " + flags
	printed := func(more ...string) string {
		args := append([]string{"--net", built(t), "capture", "print"}, strings.Fields(flags)...)
		return run(t, program(t, "unshare"), append(args, more...)...)
	}
	return "#!/bin/sh\n# Captured: " + about + ".\n" +
		"# `gateway capture print " + flags + "`, and with --undo; made by go test ./deploy -run CaptureForms -update\n" +
		"set -eu\ncase \"${1:-}\" in\non)\n" + printed() + ";;\noff)\n" + printed("--undo") + ";;\n*) echo \"usage: $0 on|off\" >&2; exit 2 ;;\nesac\n"
}

// The files are what the gateway prints, and a host takes them and is given back as it was.
func TestNetnsCaptureForms(t *testing.T) {
	needRoot(t)
	for _, backend := range []string{"nft", "iptables"} {
		for _, form := range captureForms {
			name := filepath.Join("capture", backend+"-"+form.name+".sh")
			t.Run(name, func(t *testing.T) {
				want := captureForm(t, backend, form.about, form.flags)
				if *update {
					write(t, name, want, 0o755)
				}
				if got := read(t, name); got != want {
					t.Errorf("%s is not what is printed; go test ./deploy -run CaptureForms -update", name)
				}
				look := "ip rule; ip -6 rule; ip route show table all; nft list ruleset | sed -n /culvert/Ip; iptables-save | sed -n '/^-A/p; /^:CULVERT/p'; ip6tables-save | sed -n '/^-A/p; /^:CULVERT/p'; ipset list -n"
				script := strings.NewReplacer("NAME", name, "LOOK", look).Replace(`set -eu
PATH=$PATH:/usr/sbin:/sbin
ip link set lo up
ip link add eth1 type veth peer name eth2
before=$(LOOK)
sh NAME on
test "$(LOOK)" != "$before"
sh NAME off
after=$(LOOK)
test "$after" = "$before" || { echo "$after"; exit 1; }
`)
				if out, err := try(t, program(t, "unshare"), "--net", "sh", "-c", script); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
	files, err := os.ReadDir("capture")
	if err != nil || len(files) != 2*len(captureForms) {
		t.Errorf("%d files in capture, want %d (%v)", len(files), 2*len(captureForms), err)
	}
}
