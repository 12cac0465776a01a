package rules

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The programs of the system take what is rendered.
func TestNetnsPlanIsAccepted(t *testing.T) {
	inEveryWay(t, func(t *testing.T, k *compiled) { isolated(t, func() { accepts(t, k) }) })
}

// accepts checks that the system would take the rules of k. Sets are made, since rules name them.
func accepts(t *testing.T, k *compiled) {
	t.Helper()
	for _, s := range k.plan() {
		var c Command
		switch {
		case s.Do.Args[0] == "nft":
			c = Command{Args: []string{"nft", "-c", "-f", "-"}, Stdin: s.Do.Stdin}
		case strings.HasSuffix(s.Do.Args[0], "-restore"):
			c = Command{Args: slices.Insert(slices.Clone(s.Do.Args), 1, "--test"), Stdin: s.Do.Stdin}
		case s.Do.Args[0] == "ipset":
			c = s.Do
		default:
			continue
		}
		if _, err := run(context.Background(), c); err != nil {
			t.Errorf("%v\n%s", err, c)
		}
	}
}

// Names that Validate takes, the programs take for nothing but names.
func TestNetnsPlanHoldsNames(t *testing.T) {
	isolated(t, func() {
		for _, name := range []string{"$(id)", "-j", "a&b", "(a)", "a|b", "<a>", "a#b", "#", "@a", "a%d", "~", "a=b", "[a]", "a?", "123456789012345", "a:b", "0", "0x1"} {
			for _, backend := range []string{BackendNFT, BackendIPTables} {
				accepts(t, mustCompile(t, Config{Backend: backend, Forward: []string{name}, Fail: FailClosed}, true))
			}
		}
	})
}

// cgroups returns the paths of control groups of version 2, where the system has them where the packet filter looks.
func cgroups(t *testing.T) (paths []string) {
	t.Helper()
	const root = "/sys/fs/cgroup"
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil
	}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != root && len(paths) < 8 {
			paths = append(paths, strings.TrimPrefix(path, root+"/"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// Control groups are those of the system, which must be there.
func TestNetnsPlanOfCgroups(t *testing.T) {
	isolated(t, func() {
		if list := cgroups(t); len(list) > 0 {
			accepts(t, mustCompile(t, Config{ExcludeCgroups: list}, true))
			accepts(t, mustCompile(t, Config{Backend: BackendIPTables, Fail: FailClosed, ExcludeCgroups: list}, true))
		}
		k := mustCompile(t, Config{ExcludeCgroups: []string{"there.is/none"}}, true)
		if _, err := run(t.Context(), Command{Args: []string{"nft", "-c", "-f", "-"}, Stdin: k.nft()}); !said(err, "cgroupv2") {
			t.Errorf("nft says %v, want the error that explain knows", err)
		}
	})
}

// The commands are known where PATH does not have the folders of administrators.
func TestFindsProgramsOfAdministrators(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	var there []string
	for _, folder := range []string{"/usr/sbin", "/sbin"} {
		if _, err := os.Stat(folder + "/ip"); err == nil {
			there = append(there, folder)
		} else if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if got := program("ip"); (got != "") != (len(there) > 0) {
		t.Errorf("program(ip) = %q, and it is in %q", got, there)
	}
	if got := program("there-is-no-such-program"); got != "" {
		t.Errorf("program = %q, want none", got)
	}
}
