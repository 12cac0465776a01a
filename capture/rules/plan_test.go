package rules

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// planned are Configs whose rules differ in shape.
var planned = map[string]Config{
	"default":         {},
	"fail closed":     {Fail: FailClosed},
	"no DNS":          {NoDNS: true},
	"no DNS, closed":  {NoDNS: true, Fail: FailClosed},
	"ports":           {Ports: []string{"80", "443", "8000-8100"}, ExcludePorts: []string{"22", "6000-6063"}},
	"inbound":         {Inbound: []string{"80", "9000-9100"}},
	"inbound alone":   {NoOutbound: true, Inbound: []string{"80"}},
	"inbound, closed": {NoOutbound: true, Inbound: []string{"80"}, Fail: FailClosed},
	"router":          {Forward: []string{"eth1", "wg-0.5@x"}},
	"router alone":    {NoOutbound: true, Forward: []string{"eth1", "eth1"}},
	"router, closed":  {NoOutbound: true, NoDNS: true, Forward: []string{"eth1"}, Fail: FailClosed},
	"one port":        {Port: 9, InboundPort: 9, DNSPort: 9, Inbound: []string{"80"}},
	"exclusions": {
		Exclude: []string{"10.0.0.0/9", "10.128.0.0/9", "192.0.2.7", "fd00::/8", "2001:db8::1"}, ExcludeUIDs: []uint32{0, 0, 1000, 4294967294}, ExcludeGIDs: []uint32{7, 4294967294},
	},
	"all excluded": {Exclude: []string{"0.0.0.0/0", "::/0"}, ExcludePorts: []string{"1-65535"}},
	"all of it": {
		Ports: []string{"1-65535"}, Inbound: []string{"80"}, Forward: []string{"eth1"}, Exclude: []string{"10.0.0.0/8"}, ExcludePorts: []string{"22"}, ExcludeUIDs: []uint32{1}, ExcludeGIDs: []uint32{1},
	},
} // immutable

// inEveryWay calls f with each of planned, in each way to install it, with IPv6 and without.
func inEveryWay(t *testing.T, f func(t *testing.T, k *compiled)) {
	t.Helper()
	for name, c := range planned {
		for _, backend := range []string{BackendNFT, BackendIPTables} {
			for _, mode := range []string{ModeTProxy, ModeRedirect} {
				for _, six := range []bool{true, false} {
					c.Backend, c.Mode = backend, mode
					if c.UDPPorts = nil; mode == ModeTProxy && name != "default" {
						c.UDPPorts = []string{"443", "1000-2000"}
					}
					t.Run(strings.Join([]string{name, backend, mode, map[bool]string{true: "IPv6"}[six]}, " "), func(t *testing.T) { f(t, mustCompile(t, c, six)) })
				}
			}
		}
	}
}

// Each step has what undoes it, and the packet filter's hooks come last.
func TestPlan(t *testing.T) {
	inEveryWay(t, func(t *testing.T, k *compiled) {
		steps := k.plan()
		for i, s := range steps {
			if len(s.Do.Args) == 0 || len(s.Undo.Args) == 0 {
				t.Errorf("step %d is `%s`, undone by `%s`", i, s.Do, s.Undo)
			}
			if slices.ContainsFunc(steps[:i], func(other Step) bool { return slices.Equal(other.Do.Args, s.Do.Args) }) {
				t.Errorf("step %d, `%s`, is there twice", i, s.Do)
			}
			if six := strings.Contains(s.Do.String(), "ip6tables") || slices.Contains(s.Do.Args, "-6") || slices.Contains(s.Do.Args, "inet6"); six && !k.ipv6 {
				t.Errorf("step %d, `%s`, is for IPv6, which the system does not have", i, s.Do)
			}
			if s.Do.Args[0] == "ip" && !k.tproxy() {
				t.Errorf("step %d, `%s`, is a route, which redirect does not need", i, s.Do)
			}
		}
		if last := steps[len(steps)-1].Do.Args; last[0] != "nft" && !slices.Contains(last, "-I") {
			t.Errorf("the last step is %q, want what leads packets to the chains", last)
		}
	})
}

func TestPlanRefuses(t *testing.T) {
	_, err := Plan(&Config{Mode: "tun", Ports: []string{"0"}}, Host{})
	if got := fieldsOf(err); !slices.Equal(got, []string{"mode", "ports"}) {
		t.Errorf("Plan = %v, want faults of mode and ports", err)
	}
}

// Plan shows what Install without nft would do where nft is not there.
func TestPlanWithoutNFT(t *testing.T) {
	steps, err := Plan(&Config{}, Host{Find: func(string) bool { return false }})
	if err != nil || !slices.ContainsFunc(steps, func(s Step) bool { return s.Do.Args[0] == "iptables-restore" }) {
		t.Errorf("Plan = %v, %v, want commands of iptables", steps, err)
	}
}

// What people call things stays one word of one rule.
func TestPlanHoldsNames(t *testing.T) {
	for _, name := range hostileWords {
		for _, c := range []Config{{Forward: []string{name}}, {Ports: []string{name}}, {Exclude: []string{name}}, {Backend: name}, {Mode: name}} {
			if name == "" && len(c.Forward)+len(c.Ports)+len(c.Exclude) == 0 {
				continue // the default
			}
			var field *FieldError
			if steps, err := Plan(&c, Host{}); !errors.As(err, &field) {
				t.Errorf("Plan with %q = %v, %v, want a fault", name, steps, err)
			}
		}
	}
	// These are possible names, and mean something to a shell, to nft or to iptables in another place.
	for _, name := range []string{"$(id)", "-j", "a&b", "(a)", "a|b", "<a>", "a#b", "@a", "a%d", "~", "a=b", "[a]", "a?"} {
		c := Config{Forward: []string{name}, ExcludeCgroups: []string{name + ";drop"}}
		k := mustCompile(t, c, true)
		if text := k.nft(); strings.Count(text, `{ "`+name+`" } goto forward`) != 1 || strings.Count(text, name) != 2 || !strings.Contains(text, `level 1 "`+name+`;drop" return`) {
			t.Errorf("nft with %q:\n%s", name, text)
		}
		if text := k.restore(false); strings.Count(text, "-i "+name+" -j ") != 1 || strings.Count(text, "--path "+name+";drop -j ") != 1 {
			t.Errorf("iptables with %q:\n%s", name, text)
		}
	}
}

func TestCommandString(t *testing.T) {
	for _, tt := range []struct {
		c    Command
		want string
	}{
		{Command{Args: []string{"ip", "-4", "route"}}, "ip -4 route"},
		{Command{Args: []string{"a", "", "b c", "it's", "$x", "a\nb"}}, `a '' 'b c' 'it'\''s' '$x' ` + "'a\nb'"},
		{Command{Args: []string{"nft", "-f", "-"}, Stdin: "x $y\n"}, "nft -f - <<'END'\nx $y\nEND"},
	} {
		if got := tt.c.String(); got != tt.want {
			t.Errorf("String = %q, want %q", got, tt.want)
		}
	}
}
