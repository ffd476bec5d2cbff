// Package rig starts what a test or the demo needs around Countersign: a
// control plane, the countersign binary as a process, and an agent that speaks
// MCP to it over HTTP. It looks at the cluster with kubectl, so that what it
// reports does not come from the code under test.
//
// It holds no behaviour of Countersign and is imported by nothing else.
package rig
