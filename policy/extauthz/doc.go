// Package extauthz asks an external authorizer whether a flow may pass, over Envoy's ext_authz interface of gRPC
// (envoy.service.auth.v3.Authorization/Check, go-control-plane v1.40.0), which authorizers for Envoy and Istio serve.
//
// It fails closed, and there is no switch for that: no answer in time, an answer that is not understood, and an answer that
// asks for what this gateway does not do are refusals, each with a reason that tells the operator what to look at. Nothing is
// asked twice, and no answer is kept: an authorizer that wants fewer questions can be given rules that are narrower.
//
// Everything is bounded: how long an answer may take (Config.Timeout, with connecting and waiting for a turn), how many are
// asked at once (Config.MaxInFlight), how long question and answer may be, and what an answer may add to a request. After
// failures in a row the authorizer is left alone for a second at a time, so that one that is down does not cost every flow
// the whole timeout.
package extauthz
