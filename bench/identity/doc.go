// Package identity makes what gateways and their peers are during a run that measures or attacks them: a CA of the
// run's own, and the files of certificates and keys that it signs.
package identity
