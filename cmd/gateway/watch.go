package main

import (
	"crypto/sha256"
	"os"
	"time"
)

const (
	// watchInterval is how often the configuration file is looked at: one stat, and soon enough for a
	// person who waits.
	watchInterval = 500 * time.Millisecond
	// watchSettled is the age from which a file's time stamp tells of every later change. File systems
	// step it by up to two seconds.
	watchSettled = 2 * time.Second
)

// fileWatch notices that a file has other content than before. A new time stamp alone is no change, and a
// symbolic link that is swapped, as Kubernetes does, is one. One goroutine uses it.
type fileWatch struct {
	path string
	info os.FileInfo
	sum  [sha256.Size]byte
}

// newFileWatch takes the content of now as the one before.
func newFileWatch(path string) *fileWatch {
	w := &fileWatch{path: path}
	w.changed()
	return w
}

// fileWatches are those of a configuration and of the files that are read with it.
type fileWatches map[string]*fileWatch

// watch takes files as they are now in the place of those before. Of those that stay it keeps what is known.
func (w *fileWatches) watch(files []string) {
	before := *w
	*w = make(fileWatches)
	for _, path := range files {
		if (*w)[path] = before[path]; (*w)[path] == nil {
			(*w)[path] = newFileWatch(path)
		}
	}
}

// changed reports whether the content of one of them is another than at the last call.
func (w fileWatches) changed() (changed bool) {
	for _, one := range w {
		changed = one.changed() || changed
	}
	return changed
}

// changed reports whether the content is another than at the last call. A file that is gone, or cannot be
// read, has not changed.
func (w *fileWatch) changed() bool {
	info, err := os.Stat(w.path)
	if err != nil {
		return false
	}
	same := w.info != nil && os.SameFile(info, w.info) && info.Size() == w.info.Size() && info.ModTime().Equal(w.info.ModTime())
	if same && time.Since(info.ModTime()) > watchSettled {
		return false
	}
	text, err := os.ReadFile(w.path)
	if err != nil {
		return false
	}
	w.info = info
	sum := sha256.Sum256(text)
	if sum == w.sum {
		return false
	}
	w.sum = sum
	return true
}
