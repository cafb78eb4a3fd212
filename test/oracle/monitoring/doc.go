// Package monitoring tests deploy/monitoring with Prometheus' own code: it parses every expression, and evaluates the
// alert rules. A module of its own, because Prometheus requires several hundred modules.
package monitoring
