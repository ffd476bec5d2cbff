// Package trial decides calls that somebody wrote down, or that were recorded,
// without a cluster: the cases of PolicyTest files, one call with what every
// rule makes of it, and the calls of an exported audit log under another policy.
//
// A call goes the way that gate takes it: the tool reads the arguments, policy
// says whether the caller could ever use the tool, the tool plans, and policy
// decides, with the Namespace and the preview only where the decision hangs on
// them. What a cluster would answer comes from the case, or is estimated from
// the live objects that it gives.
//
// trial does not send, count or record anything: limits are named and not drawn
// on. It knows kinds only through what it is given (Kinds).
package trial
