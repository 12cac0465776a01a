// Package deploy holds what a gateway is deployed with: configurations for every role, a container image, units of systemd,
// manifests for Kubernetes, rules of packet filters, programs to stand beside, a dashboard. It has no code; its tests check
// what can be checked without the systems that these are for. README.md says what that is, and what was not checked.
package deploy
