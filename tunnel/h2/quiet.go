package h2

// Quiet reports whether there is nothing to be read, not even the end of the stream. It does not wait.
func (s *Stream) Quiet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queue.empty() && !s.eof && s.rerr == nil && !s.rclosed
}
