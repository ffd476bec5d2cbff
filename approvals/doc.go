// Package approvals is the approval state machine: what states an Operation
// passes through, who may move it, and what a person's vote does. It also says who
// is who (Directory), what a Grant covers and what a Lock halts, and writes the
// text that approvers read.
//
// It is pure: time comes in as an argument, nothing is stored or sent. gate
// commits what it returns, together with the Record, by compare-and-swap.
package approvals
