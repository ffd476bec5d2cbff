// Package tools turns what an agent asks for into Plans. Each tool has one
// verb: a typed input, a plan function that says which Kubernetes API requests
// the call will be, and a renderer for what came back.
//
// A tool never sends anything and never decides anything: gate does both, the
// same way for every tool. There is no tool that approves, changes policy or
// writes to the audit log.
package tools
