/* queue_pg:doctor_listen */
listen queue_pg_doctor
