package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// parseFlags makes a Config of a command line of `gateway run`.
func parseFlags(t *testing.T, line string) (*Config, *faults) {
	t.Helper()
	r := &runFlags{}
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	r.addFile(fs)
	r.addIdentity(fs)
	r.addRun(fs)
	r.changed = fs.Changed
	if err := fs.Parse(strings.Fields(line)); err != nil {
		t.Fatal(err)
	}
	cfg, p, f := r.config()
	validate(cfg, p, f)
	return cfg, f
}

func TestFlagsMakeRoutes(t *testing.T) {
	tests := []struct{ name, line, want string }{
		{"entry", "--socks 127.0.0.1:1 --via gw:1", "socks → via gw:1"},
		{"chain", "--socks 127.0.0.1:1 --via a:1,b:2", "socks → via a:1 b:2"},
		{"forwards", "--forward 127.0.0.1:1=web:80 --forward 127.0.0.1:2=db:5432 --via gw:1", "forward-1 forward-2 → via gw:1"},
		{"inbound", "--hbone :1", "hbone local →"},
		{"egress", "--hbone :1 --egress *.example.com:443 --egress 10.0.0.0/8 --egress 2001:db8::1 --egress web:80",
			"hbone local → | hbone *.example.com:443 web:80 10.0.0.0/8 2001:db8::1 →"},
		{"middle of a chain", "--hbone :1 --via next:1", "hbone local → | hbone → via next:1"},
		{"uProxy", "--hbone :1 --socks 127.0.0.1:2 --via gw:1", "hbone local → | socks → via gw:1"},
		{"uProxy that is an egress too", "--hbone :1 --socks 127.0.0.1:2 --via gw:1 --egress web:80", "hbone local → | socks → via gw:1 | hbone web:80 →"},
		{"out from here", "--socks 127.0.0.1:1 --egress *", "socks * →"},
		{"port forward from here", "--forward 127.0.0.1:1=10.0.0.9:80", "forward-1 10.0.0.9:80 →"},
		{"port forward of a name from here", "--forward 127.0.0.1:1=[2001:db8::1]:80", "forward-1 [2001:db8::1]:80 →"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, f := parseFlags(t, tt.line)
			if err := f.err(); err != nil {
				t.Fatalf("faults: %v", err)
			}
			var routes []string
			for _, r := range cfg.Routes {
				text := strings.Join(append(append(append([]string{}, r.Listeners...), r.Hosts...), r.Destinations...), " ") + " →"
				if len(r.Via) > 0 {
					text += " via " + strings.Join(r.Via, " ")
				}
				routes = append(routes, text)
			}
			if got := strings.Join(routes, " | "); got != tt.want {
				t.Errorf("routes = %s, want %s", got, tt.want)
			}
		})
	}
}

func TestFlagsOfTheProcess(t *testing.T) {
	cfg, f := parseFlags(t, "--hbone :1 --admin 127.0.0.1:2 --memory 64MiB --drain 5s --state /x --log-level debug --log-format json --allow a/ns/b/sa/c")
	if err := f.err(); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(cfg.Admin.Address, cfg.Memory, cfg.drain(), cfg.State, cfg.Log, cfg.Policy.Allow)
	if want := "127.0.0.1:2 64MiB 5s/x{debug json}[a/ns/b/sa/c]"; strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
		t.Errorf("Config = %s, want %s", got, want)
	}
	if cfg, _ := parseFlags(t, "--hbone :1 --drain 0"); cfg.drain() != 0 {
		t.Errorf("--drain 0 = %v, want none", cfg.drain())
	}
	if cfg, _ := parseFlags(t, "--hbone :1"); cfg.drain() != 30*time.Second {
		t.Errorf("drain = %v, want 30s", cfg.drain())
	}
}

func TestFlagFaultsNameTheFlag(t *testing.T) {
	tests := []struct{ line, want string }{
		{"--socks 127.0.0.1:1 --via gw:1 --egress x:80 --hbone 127.0.0.1:1", "--hbone: 127.0.0.1:1 is already taken by listener \"socks\""},
		{"--hbone :1 --via gw:1 --egress x:80", "--egress: cannot be given together with --via and --hbone alone"},
		{"--socks 127.0.0.1:1 --via gw:1,gw:1", "--via: hop \"gw:1\" is in the chain twice"},
		{"--socks 127.0.0.1:1 --via gw:1 --memory 1KiB", "--memory: "},
		{"--hbone :1 --proxy-users x --open-proxy --open-admin", "--proxy-users: there is no --socks"},
		{"--hbone :1 --proxy-users x --open-proxy --open-admin", "--open-proxy: there is no --socks"},
		{"--hbone :1 --proxy-users x --open-proxy --open-admin", "--open-admin: there is no --admin"},
		{"--socks 127.0.0.1:1 --via gw:1 --allow x/ns/y/sa/z", "--allow: there is no --hbone"},
		{"--socks 127.0.0.1:1 --via gw:1 --egress web:80", "--egress: flows go via --via"},
	}
	for _, tt := range tests {
		_, f := parseFlags(t, tt.line)
		if err := f.err(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: faults = %v, want %s", tt.line, err, tt.want)
		}
	}
}

// Rules may be named by a flag, and are watched as those of a file are.
func TestFlagPolicy(t *testing.T) {
	m := newMesh(t)
	file := m.write("policy.yaml", []byte("rules: [{name: closed, action: deny}]\n"))
	exit := m.runReady("exit", "--hbone", "--policy", file)
	entry := m.runReady("entry", "--socks", "--via", exit.address)
	target := echoServer(t)
	if _, err := dialSOCKS(t, entry.address, target); err == nil {
		t.Error("a flow that the rule denies gets through")
	}
	m.replaceFile("policy.yaml", []byte("rules: [{name: open}]\n"))
	exit.metric(`culvert_reloads_total{result="ok"} 1`)
	nc, err := dialSOCKS(t, entry.address, target)
	if err == nil {
		err = echo(nc, "hello")
	}
	if err != nil {
		t.Errorf("a flow that the new rule allows: %v", err)
	}
}
