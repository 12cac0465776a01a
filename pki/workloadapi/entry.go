package workloadapi

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// maxEntries bounds the list, each entry of which is compared for each call.
const maxEntries = 1000

// Entry says which processes have an identity: those that meet all of its conditions. There is at least one.
type Entry struct {
	UID  *uint32 // the user that the process runs as
	GID  *uint32 // the group that the process runs as
	Path string  // the file that it executes, absolute; it must be the very file that this path names here, "" for any
	ID   string  // the SPIFFE ID
}

// ParseEntry reads an entry as uid=1000,gid=100,path=/usr/bin/app=spiffe://cluster.local/ns/default/sa/app; each of the
// conditions may be left out. Whether the identity is one is not looked at.
func ParseEntry(text string) (e Entry, err error) {
	conditions, id, ok := strings.Cut(text, "=spiffe://")
	if !ok {
		return e, fmt.Errorf("%q names no identity; it should be like uid=1000,path=/usr/bin/app=spiffe://cluster.local/ns/default/sa/app", text)
	}
	e.ID = "spiffe://" + id
	for condition := range strings.SplitSeq(conditions, ",") {
		name, value, _ := strings.Cut(condition, "=")
		switch name {
		case "uid", "gid":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return e, fmt.Errorf("%s=%q is no number of a user or group", name, value)
			}
			number := uint32(n)
			if name == "uid" {
				e.UID = &number
			} else {
				e.GID = &number
			}
		case "path":
			e.Path = value
		default:
			return e, fmt.Errorf("%q is no condition; there are uid, gid and path", name)
		}
	}
	return e, e.check()
}

func (e *Entry) check() error {
	switch {
	case e.ID == "":
		return errors.New("an entry of the Workload API names no identity")
	case e.UID == nil && e.GID == nil && e.Path == "":
		return fmt.Errorf("the entry for %s has no condition: every process would have it", e.ID)
	case e.Path != "" && (!filepath.IsAbs(e.Path) || filepath.Clean(e.Path) != e.Path):
		return fmt.Errorf("the path %q of %s is not absolute and clean", e.Path, e.ID)
	}
	return nil
}

func checkEntries(entries []Entry) error {
	if len(entries) > maxEntries {
		return fmt.Errorf("%d entries of the Workload API are too many; at most %d", len(entries), maxEntries)
	}
	for i := range entries {
		if err := entries[i].check(); err != nil {
			return err
		}
	}
	return nil
}

// process is what is known of a calling process at one moment.
type process struct {
	pid      int32
	uid, gid uint32
	path     string
	file     os.FileInfo // the executable itself
}

func (p *process) String() string {
	return fmt.Sprintf("pid=%d uid=%d gid=%d path=%q", p.pid, p.uid, p.gid, p.path)
}

// matches reports whether the process meets the conditions of e. The path must name the same file here: in a container
// another program may have that path.
func (e *Entry) matches(p *process) bool {
	if e.UID != nil && *e.UID != p.uid || e.GID != nil && *e.GID != p.gid {
		return false
	}
	if e.Path == "" {
		return true
	}
	here, err := os.Stat(e.Path)
	return err == nil && p.file != nil && os.SameFile(here, p.file)
}
