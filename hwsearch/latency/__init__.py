"""Tables that answer instead of the device: what a candidate's compiled units cost, summed, with an error bar."""
