package tunnel

// ListenerStats are the counters of a program's Listener.
func ListenerStats(l *Listener) Stats { return l.g.Stats() }
