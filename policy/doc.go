// Package policy decides: given who asks, with which tool, for which request
// and with which effect, it answers allow, deny or require_approval, names the
// rules that led there, and gives a reason.
//
// It is pure. It reads policy files and compiles their CEL once; it never looks
// at a cluster. When a decision hangs on the object or on what would change, it
// says so (Decision.Needs) and gate asks again with what it has read.
//
// deny beats require_approval beats allow. What no rule matches is denied, and
// so is what a rule cannot be evaluated for.
package policy
