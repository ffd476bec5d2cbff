// Package replay repeats what a session changed in another cluster, a sandbox, and
// says where that ends otherwise than the audit log tells.
//
// What is repeated are the changes that were sent and answered, in the order in
// which they were begun, as the log has them: masked. Stand-ins take the place of
// what is masked, and count as equal to it. An object that the session found there
// is made from its state on record, where there is one.
//
// A cluster that the log knows is refused, before anything is written. Nothing here
// goes through the gate or a server: it is for auditors, with their own credential.
package replay
