package rules

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// ways are the ways to install rules.
var ways = []Config{
	{Backend: BackendNFT, Mode: ModeTProxy},
	{Backend: BackendNFT, Mode: ModeRedirect},
	{Backend: BackendIPTables, Mode: ModeTProxy},
	{Backend: BackendIPTables, Mode: ModeRedirect},
} // immutable

func nameOf(c Config) string { return strings.Join([]string{c.Backend, c.Mode, c.Fail}, " ") }

// records returns the files of records that are left in the folder of a host.
func records(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*.json*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// install installs c and checks that the system has it.
func install(t *testing.T, c Config, h Host) {
	t.Helper()
	if err := Install(t.Context(), &c, h); err != nil {
		t.Fatalf("Install(%s) = %v, want nil", nameOf(c), err)
	}
	s, err := Look(t.Context(), h)
	if err != nil || !s.Installed || len(s.Missing) > 0 || s.Config.Backend != c.Backend || s.Config.Mode != c.Mode {
		t.Fatalf("after Install(%s), Look = %+v, %v", nameOf(c), s, err)
	}
}

// remove removes what is installed, twice, and checks that nothing is left.
func remove(t *testing.T, h Host, before string) {
	t.Helper()
	for range 2 {
		if err := Remove(t.Context(), h); err != nil {
			t.Fatalf("Remove = %v, want nil", err)
		}
	}
	if got := everything(t); got != before {
		t.Errorf("after Remove there is:\n%s\nwant:\n%s", got, before)
	}
	if left := records(t, h.Dir); len(left) > 0 {
		t.Errorf("after Remove there is %v", left)
	}
}

func TestNetnsInstallWithoutIPv6(t *testing.T) {
	for _, c := range ways {
		t.Run(nameOf(c), func(t *testing.T) {
			isolated(t, func() {
				withoutIPv6(t)
				h := Host{Dir: t.TempDir()}
				before := everything(t)
				install(t, c, h)
				if s, err := Look(t.Context(), h); err != nil || s.IPv6 {
					t.Errorf("Look = %+v, %v, want no IPv6", s, err)
				}
				remove(t, h, before)
			})
		})
	}
}

// IPv6 is switched on while there are no rules for it: that is told, and another install catches it.
func TestNetnsInstallAgainAfterIPv6IsOn(t *testing.T) {
	for _, c := range ways {
		t.Run(nameOf(c), func(t *testing.T) {
			isolated(t, func() {
				h := Host{Dir: t.TempDir()}
				withoutIPv6(t)
				install(t, c, h)
				disableIPv6(t, "0")
				if s, err := Look(t.Context(), h); err != nil || s.IPv6 || !s.IPv6Since {
					t.Errorf("Look = %+v, %v, want that IPv6 is on since", s, err)
				}
				install(t, c, h)
				if s, err := Look(t.Context(), h); err != nil || !s.IPv6 || s.IPv6Since {
					t.Errorf("Look after another Install = %+v, %v, want IPv6", s, err)
				}
				if err := Remove(t.Context(), h); err != nil {
					t.Fatal(err)
				}
				if got := everything(t); strings.Contains(got, "15001") || strings.Contains(got, "culvert") || strings.Contains(got, "CULVERT") {
					t.Errorf("after Remove there is:\n%s", got)
				}
			})
		})
	}
}

// IPv6 is switched off while rules for it are installed: the routes go by themselves.
func TestNetnsRemoveAfterIPv6IsOff(t *testing.T) {
	for _, c := range ways {
		t.Run(nameOf(c), func(t *testing.T) {
			isolated(t, func() {
				h := Host{Dir: t.TempDir()}
				install(t, c, h)
				withoutIPv6(t)
				if err := Remove(t.Context(), h); err != nil {
					t.Fatalf("Remove = %v, want nil", err)
				}
				if got := everything(t); strings.Contains(got, "15001") || strings.Contains(got, "culvert") || strings.Contains(got, "CULVERT") {
					t.Errorf("after Remove there is:\n%s", got)
				}
			})
		})
	}
}

// Each way replaces each other one, and what remains is as if there had been nothing else.
func TestNetnsInstallReplaces(t *testing.T) {
	for _, first := range ways {
		for _, second := range ways {
			t.Run(nameOf(first)+" by "+nameOf(second), func(t *testing.T) {
				var alone string
				isolated(t, func() {
					install(t, second, Host{Dir: t.TempDir()})
					alone = everything(t)
				})
				isolated(t, func() {
					h := Host{Dir: t.TempDir()}
					before := everything(t)
					first.Fail, first.Inbound, first.Port = FailOpen, []string{"80"}, 7
					install(t, first, h)
					install(t, second, h)
					if got := everything(t); !sameLines(got, alone) {
						t.Errorf("there is:\n%s\nwant:\n%s", got, alone)
					}
					remove(t, h, before)
				})
			})
		}
	}
}

// sameLines reports whether a and b have the same lines, in whatever order: sets and tables are listed by age.
func sameLines(a, b string) bool {
	sorted := func(text string) []string { return slices.Sorted(strings.Lines(text)) }
	return slices.Equal(sorted(a), sorted(b))
}

// What the system does not take leaves what was installed as it was: a control group that is not there.
func TestNetnsInstallFails(t *testing.T) {
	for _, first := range append([]Config{{}}, ways...) {
		for _, mode := range []string{ModeTProxy, ModeRedirect} {
			t.Run(nameOf(first)+" then "+mode, func(t *testing.T) {
				isolated(t, func() {
					h := Host{Dir: t.TempDir()}
					clean := everything(t)
					if first.Backend != "" {
						install(t, first, h)
					}
					before := everything(t)
					err := Install(t.Context(), &Config{Backend: BackendNFT, Mode: mode, ExcludeCgroups: []string{"there.is/none"}}, h)
					if err == nil || !strings.Contains(err.Error(), "--exclude-cgroup") || strings.Contains(err.Error(), "\n") {
						t.Errorf("Install = %v, want one line that names --exclude-cgroup", err)
					}
					if got := everything(t); got != before {
						t.Errorf("after Install there is:\n%s\nwant:\n%s", got, before)
					}
					if got, err := Look(t.Context(), h); err != nil || got.Installed != (first.Backend != "") || got.Config.Backend != first.Backend || len(got.Missing) > 0 {
						t.Errorf("Look = %+v, %v, want what was there before", got, err)
					}
					remove(t, h, clean)
				})
			})
		}
	}
}

func TestNetnsRemoveWithLostRecord(t *testing.T) {
	for _, c := range ways {
		for _, c.Fail = range []string{FailOpen, FailClosed} {
			t.Run(nameOf(c), func(t *testing.T) {
				isolated(t, func() {
					h := Host{Dir: t.TempDir()}
					before := everything(t)
					c.Port, c.InboundPort, c.Inbound = 7, 9, []string{"80"}
					install(t, c, h)
					for _, path := range records(t, h.Dir) {
						if err := os.Remove(path); err != nil {
							t.Fatal(err)
						}
					}
					install(t, c, h) // what is there is known to be ours
					for _, path := range records(t, h.Dir) {
						if err := os.Remove(path); err != nil {
							t.Fatal(err)
						}
					}
					if err := Remove(t.Context(), h); err != nil {
						t.Fatalf("Remove = %v, want nil", err)
					}
					got := everything(t)
					for _, table := range []string{"table ip mangle {\n}\n", "table ip6 mangle {\n}\n", "table ip nat {\n}\n", "table ip6 nat {\n}\n"} {
						got = strings.ReplaceAll(got, table, "") // nobody knows any more who made them
					}
					if c.Backend == BackendNFT && got != before || strings.Contains(got, "CULVERT") || strings.Contains(got, "culvert") || strings.Contains(got, "15001") {
						t.Errorf("after Remove there is:\n%s\nwant:\n%s", got, before)
					}
				})
			})
		}
	}
}

// The record of a namespace that is no more is not one of a namespace with the same number.
func TestNetnsRecordOfAnotherNamespace(t *testing.T) {
	isolated(t, func() {
		h := Host{Dir: t.TempDir()}
		install(t, ways[0], h)
		system(t, "nft", "delete", "table", "inet", tableName)
		system(t, "nft", "add", "table", "inet", tableName)
		path, err := h.path()
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		other := strings.Replace(string(text), identity(), identity()+"0", 1)
		if identity() == "" || other == string(text) {
			t.Fatalf("the record does not name its namespace, %q:\n%s", identity(), text)
		}
		if err := os.WriteFile(path, []byte(other), 0o644); err != nil {
			t.Fatal(err)
		}
		if s, err := Look(t.Context(), h); err != nil || s.Installed {
			t.Errorf("Look = %+v, %v, want nothing", s, err)
		}
		if err := Remove(t.Context(), h); err != nil {
			t.Errorf("Remove = %v, want nil", err)
		}
		system(t, "nft", "list", "table", "inet", tableName) // it is somebody else's
	})
}
