// Package endpoint picks, among the endpoints of a service or a hop, the one that a flow goes to: the least loaded of
// those that are near and well. It knows where endpoints come from (the configuration, DNS), how they fare (what flows
// meet, what probes find) and how much each carries; how one is reached is told to it.
//
//	config.go   what the configuration says
//	set.go      a Set: the endpoints of one name, changed by reloads and by DNS
//	pick.go     which of them: by locality, health, limits and load; a Lease tells what became of it
//	eject.go    passive health: endpoints that fail flows are left alone for a while
//	probe.go    active health: endpoints are asked whether they are well
//	dns.go      names that become endpoints
//
// What flows meet is a guess, for it may be the fault of what they carry: so many endpoints may be ejected for it at a time
// as EjectionConfig.Most says, and no more. What probes find is known: an endpoint that is down is not used. Where by
// both none would be left, all are used.
//
// # Locks
//
// Set.mu guards all of a Set, its endpoints included. Nothing is waited for and nobody called while it is held.
package endpoint
