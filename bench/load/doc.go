// Package load is what flows carry while gateways are measured: clients, and the server that answers them. Both are in
// the process that measures, the same for all that is compared.
package load
