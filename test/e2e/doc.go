// Package e2e holds the end-to-end tests: real pods on the real kubelets of a running cluster, connected by nothing but
// Weft. They are built with the tag "e2e"; README.md says how to run them.
//
// TestMain connects to the cluster, loads the probe's image and makes a namespace; all tests share those, and the pods
// that they only look at. A test that changes the cluster (the configuration, an agent, a switch) puts it back. Tests
// run one after the other; inside a test, one goroutine per pod drives the probes.
package e2e
