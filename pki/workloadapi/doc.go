// Package workloadapi serves the SPIFFE Workload API (SPIFFE Workload API, and SPIFFE Workload Endpoint) on a Unix
// socket: X509-SVIDs, JWT-SVIDs and trust bundles for the programs of this host, which any SPIFFE library can fetch. A
// program shows nothing: the system says which process is at the other end of the socket, and a list says which identity
// belongs to the user and the executable of that process. It signs nothing; an Issuer does.
package workloadapi
