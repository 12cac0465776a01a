package tunnel

import "os"

// spareFile is a file that is held only to be given up when there is none left, so that a waiting
// connection can be accepted and closed.
type spareFile struct{ f *os.File }

// openSpare opens the file; where it cannot be had, nothing is held.
func openSpare() *spareFile {
	f, err := os.Open(os.DevNull)
	if err != nil {
		return &spareFile{}
	}
	return &spareFile{f: f}
}

// close gives the file up and reports whether there was one.
func (s *spareFile) close() bool {
	if s.f == nil {
		return false
	}
	err := s.f.Close()
	s.f = nil
	return err == nil
}
