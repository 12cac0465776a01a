// Package istioca speaks the protocol by which members of an Istio mesh ask for certificates: one gRPC call,
// /istio.v1.auth.IstioCertificateService/CreateCertificate, over TLS. ztunnel and Istio's agents are its clients, and
// istiod is its server; Server and Client are ours. It knows nothing of CAs: what is signed, and for whom, says a
// function that is handed in.
package istioca
